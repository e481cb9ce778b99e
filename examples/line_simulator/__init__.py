"""A simulated production line: boards with serial numbers, solder joints with defects, and a camera that ages."""
