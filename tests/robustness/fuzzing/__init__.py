"""Random input for everything that takes a user's: each piece gives a result of the right size, or an error that says
what is wrong with it."""
