"""The machinery that the stages stand on. Imports run one way: see tests/test_layout.py."""
