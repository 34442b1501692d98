"""What the commands of the command line share, and those that have a file of their own."""
