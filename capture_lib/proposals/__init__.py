"""From single-product photos to region proposals and region features, without a box annotation."""
