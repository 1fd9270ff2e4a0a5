"""Builds the glass boxes: weights written by hand, calibrated by measurement, hidden in noise.

`space` names the dimensions, `parts` says what one neuron or head does, `kinds` which parts a box has, `noise` fills
the rest, `assemble` turns parts into a LlamaForCausalLM, `calibrate` sets the gains, `properties` measures the result.
"""
