"""What several methods are made of: gates, masks of weights, second networks."""
