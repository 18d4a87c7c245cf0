"""The stage `search`: trials, what they cost, and the network of one point of the front."""
