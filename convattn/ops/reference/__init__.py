"""The reference paths of the operators: they follow the formulas, on any device."""
