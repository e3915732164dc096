"""Generated lessons for nano, seeded and streamed: arithmetic with its working, and small talk."""
