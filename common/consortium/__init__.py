"""A consortium in files: an authority that admits silos, a roster that it signs, and the folders of those who take part."""
