"""What everything else stands on: values, options, errors, files, the journal. Imports nothing of
this package but itself."""
