"""How long a network of any widths takes on a device, before it exists.

Time over width is a staircase whose steps belong to the runtime and the chip. specs.py says what
layers there are, tiny.py writes small ONNX files of them in many widths, measure.py has a device
time these, table.py keeps the times, and network.py adds up a whole network.
"""
