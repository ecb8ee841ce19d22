"""Programs that `yunhe bench` starts: they measure the database where it runs, and print figures as JSON."""
