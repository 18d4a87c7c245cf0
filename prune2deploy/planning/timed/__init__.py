"""Plans for a time, closed loop: predict, cut, measure the whole on the device, correct."""
