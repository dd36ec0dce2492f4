"""Native families beside other libraries, at their real width."""
