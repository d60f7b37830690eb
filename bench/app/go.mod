module github.com/sonagi/sonagi/bench/app

go 1.26
