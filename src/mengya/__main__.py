from mengya.cli import main

main()
