"""Tests of the studies, with made-up runs where real ones would take long."""
