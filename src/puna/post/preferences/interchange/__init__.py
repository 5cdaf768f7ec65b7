"""Items and labels in the forms of other tools: Argilla, Label Studio, UltraFeedback."""
