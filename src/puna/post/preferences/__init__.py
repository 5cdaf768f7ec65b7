"""Preferences from people, with quality assurance: the page, the statistics, the verdicts. No torch anywhere in it."""
