"""The subcommands of `catseg-hf`, a module for each. What a command computes with is imported when it runs, so that
help and wrong arguments are answered at once."""
