"""Functions that tests run on several ranks by `launch.on_ranks`; results go to files."""
