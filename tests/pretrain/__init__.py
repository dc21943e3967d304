"""Tests of pretrain/run.py, most of them through the real command."""
