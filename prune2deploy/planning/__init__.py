"""From a traced model and a method to a plan: for shares of its costs, or for a time."""
