"""Each access of a program to a mapped BAR: stopped, decoded, and carried out on the device."""
