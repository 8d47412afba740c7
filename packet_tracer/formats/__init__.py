"""Events as lines: text for people, JSON for programs, from one table of fields."""
