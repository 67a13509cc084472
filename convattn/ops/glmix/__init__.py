"""GLMix: soft clustering of a map into slots, and dispatching of the slots to the map."""
