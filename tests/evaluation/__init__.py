"""Tests of mmsr_pt.evaluation."""
