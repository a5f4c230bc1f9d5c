"""Configuration: YAML files read with their marks, substituted, merged and checked, before anything is constructed."""
