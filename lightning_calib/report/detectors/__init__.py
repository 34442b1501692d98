"""One detector a file: what it looks at, when it speaks and why, what it says, what it must not be confused with."""
