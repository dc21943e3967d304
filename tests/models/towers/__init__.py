"""Tests of mmsr_pt.models.towers."""
