"""Example programs: the demo, and the program that draws docs/surgery.md."""
