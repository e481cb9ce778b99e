"""The companion on a plant server or cloud host: answers hard samples, keeps models and the fleet."""
