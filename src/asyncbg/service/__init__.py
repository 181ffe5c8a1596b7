"""The standalone service ``asyncbg serve``: a user of the library like any other."""
