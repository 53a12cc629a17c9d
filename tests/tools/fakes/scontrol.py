"""Stands in for `scontrol show hostnames LIST`: the list is already one of names."""

import sys

assert sys.argv[1:3] == ["show", "hostnames"], sys.argv
print(sys.argv[3].replace(",", "\n"))
