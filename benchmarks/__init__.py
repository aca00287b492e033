"""Speed and acceptance as ratios measured side by side."""
