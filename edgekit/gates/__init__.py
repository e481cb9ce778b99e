"""Decides which samples are hard: scores, thresholds with a certified risk, thresholds for a budget, Sedna's
filters, drift alarms; and whether a changed model may replace another.

Pure mathematics and pure state machines: no clock, no random source, no file and no socket inside.
"""
