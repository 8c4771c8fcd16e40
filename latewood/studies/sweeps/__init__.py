"""Many runs of one recipe: the points, the runs, their table and page."""
