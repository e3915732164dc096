"""Evaluation: problems with known answers, asked through the same path as `ossia chat`."""
