"""Moving one file or one tree between two machines so that it arrives whole or not at all.

`send` and `receive` are the two ends of one conversation over a pair of pipes (`channel`); either may run
on either machine. `stage` keeps what has arrived apart from the name it will get, `tree` lists and checks
names. Standard library only, Python 3.10 or later: the far end gets these modules on its command line and
needs nothing installed.
"""
