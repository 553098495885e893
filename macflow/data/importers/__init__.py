"""Read other formats into rows of episodes, or straight into a Minari dataset of ours."""
