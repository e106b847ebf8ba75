"""The captioned world: scenes of coloured shapes whose pictures, sentences and ground truth are exact."""
