"""What was asked for: params.yaml, its schema, its rules and its presets."""
