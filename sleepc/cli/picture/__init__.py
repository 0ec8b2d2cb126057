"""A converted program as a picture for people: facts of the program, a canvas, and what is drawn where."""
