"""Services the workflows use: outbound HTTP, mail, notices and stores. They know nothing of jobs."""
