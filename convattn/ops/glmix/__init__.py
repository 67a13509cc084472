"""GLMix: slots that gather a map softly and give it back."""
