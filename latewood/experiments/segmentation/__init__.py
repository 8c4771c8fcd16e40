"""Claims about segmentation by inpainting error."""
