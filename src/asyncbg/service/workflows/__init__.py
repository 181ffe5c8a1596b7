"""The workflows of the service, one file each: input model, routes and tasks. They share only ``acceptance``."""
