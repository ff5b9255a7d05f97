"""What a distilled data set is made of, and what is trained on it: tiles, views, labels, students."""
