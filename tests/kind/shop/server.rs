//! A web server that knows nothing of labctl, for the test of somebody else's Service: one file, compiled by that test
//! into a static program, which is all that its image holds. Not part of the test program.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// Not 200: whoever asks what a Service does must not depend on what its pages say.
const ANSWER: &[u8] =
    b"HTTP/1.1 403 Forbidden\r\nServer: shop\r\nContent-Length: 7\r\nConnection: close\r\n\r\nclosed\n";

fn main() {
    let listener = TcpListener::bind(("0.0.0.0", 8080)).expect("port 8080 is free in a pod");
    for client in listener.incoming().flatten() {
        std::thread::spawn(move || answer(&client));
    }
}

/// Reads the request's head, whatever it asks for. A client that goes away needs no answer.
fn answer(mut client: &TcpStream) {
    let head = BufReader::new(client).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    if head.count() > 0 {
        let _ = client.write_all(ANSWER);
    }
}
