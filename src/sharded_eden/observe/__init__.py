"""For the person who runs it. May import all of the above."""
